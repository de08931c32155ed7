"""unisphere: CLIP pretraining from WebDataset shards to an open_clip model. This is the map; it imports nothing.

    config  strict  errors  schedule     the words: settings, errors, pure functions of the step
    dist                                 who am I among the ranks; collectives without gradient
    data/                                tar -> Sample -> view -> Batch; which rank reads what (a pure plan)
    models/                              two towers -> Features
    losses/                              exact contrastive loss over all ranks, and the reference it must equal
    engine/                              DeepSpeed: ds_config(cfg, world) -> dict, step, save, load
    checkpoint  export                   what a saved run is on disk; the open_clip folder made from it
    eval/                                zero-shot, retrieval; the same counts at any number of processes
    logs                                 metrics.jsonl, TensorBoard, progress; rank 0 only
    train  smoke  doctor  cli            entry points

A module imports only from the layers below it; ``tests/architecture`` holds that. One step of training, in these words:

    plan -> Sample -> Batch -> Features -> loss -> engine.step -> metrics.jsonl
"""
