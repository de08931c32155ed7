"""The only room that knows DeepSpeed.

ds_config.py     ds_config(cfg, ...) -> dict: everything DeepSpeed is told, derived purely from the run's configuration
parameters.py    which parameters decay, and how fast each learns
engine.py        Engine: forward, backward, step, snapshot, restore; the same verbs at every ZeRO stage
micro_batches.py a step in parts that keeps all negatives
reduction.py     gradients over ranks at stages 1 and 2, in place of DeepSpeed's hooks
gate.py          the last door before the weights: bad steps move nothing
state.py         where each parameter's numbers lie in DeepSpeed's tensors, as pieces that any other engine can take over
average.py       the moving average of the weights
"""
