"""What a run listens to, agrees on, looks out for, and measures of itself. ``pipeline.train`` is the only user of most of it.

signals.py    being asked to stop or to save         pulse.py      one small collective a step: what every rank must know
watchdog.py   a rank that is gone or stands still    starts.py     whether starting again leads anywhere
numbers.py    losses and gradients that are not finite: skip, go back, stop
pace.py       phases, throughput                     speed.py      the figures of a log record; flops.py: arithmetic of a step
profile.py    where a step's time goes               figures.py    what the parts of a step know, as records
"""
