"""The only room that knows DeepSpeed.

ds_config.py    ds_config(cfg, ...) -> dict: everything DeepSpeed is told, derived purely from the run's configuration
parameters.py   which parameters decay
engine.py       Engine: forward, step, save, load, consolidated weights; the same four verbs at every ZeRO stage
"""
