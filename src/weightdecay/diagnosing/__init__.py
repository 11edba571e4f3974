"""A run, finished or going on, judged by what it has written: the monitor's rows, the plan and the configuration.

In comes a run directory; out come findings in words, and for each role where it is and where theory expects it.

    diagnosis.py   `diagnose`; read this one first
    findings.py    what else is wrong than the monitor has told: divergence, departures from theory and from the plan
    rendering.py   for people
"""
