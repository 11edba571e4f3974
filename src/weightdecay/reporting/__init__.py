"""Run and study directories as one self-contained page, for people who were not there.

In: the files of a run (run.toml, metrics.jsonl, plan.json …) or of a study (study.json, results.json …), finished or
not, damaged in parts or not. Out: a page in HTML or Markdown, and each of its plots as SVG.

    records     what directories say          run_record, study_record
    pages       what a reader is told of it   run_page, runs_page (with comparing), study_page: values of `page`
    pictures    what a reader is shown        picture (the value), run_pictures, drawing with encodings (Vega-Lite), svg
    documents   how it is written             html (with page.html.j2, page.css, page.js), markdown

Open `report` first: it is all of this in order.
"""
