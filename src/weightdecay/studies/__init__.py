"""Experiments about weight decay: what to train, training it side by side, and what the results can bear.

In comes the name of a study and a size; out comes a directory of ordinary run directories with `study.json` (what was
asked) and `results.json` (means, differences in pairs, intervals, verdicts, pictures as data). A study is a value: its
arms, what is measured of each finished run, what is compared, and how it is shown. `design.py` says what such a value
is, `catalogue` has those that are known here, `runner.py` carries one out, `analysis.py` judges it.

    from weightdecay.studies.catalogue import studies

    for name, study in studies().items():
        print(name, study.question)

`runner.carry_out` trains one, as `weightdecay study NAME` does.

Open `design.py` first.
"""
