"""From shards on disk to batches of tensors, in an order that is a pure function of the seed.

    files.py      bytes by path: what a place that holds shards offers; remote.py URLs, cache.py copies of them on a local disk,
                  storage.py the right one for each path
    tar.py        reads one tar archive: member headers, sample boundaries, truncation
    shards.py     which tars a data path means, and where the samples lie in them
    members.py    from the members of a tar to a ``Sample``: its picture, captions, group
    samples.py    ShardSet: shards as one random-access sequence of ``Sample``; each read is one byte range
    unindexed.py  StreamSet: shards without index, and commands, as an endless inexact stream
    sources.py    Sources: the sets of a mixture as one sequence, from the settings
    plan.py       in which order the samples of a source are read; pure numpy, no state
    mixture.py    which sources a batch is made of, and so what each rank reads at each step; pure too
    views.py      what is random about a view: drawn first, recorded exactly, told to the model as a vector
    augment.py    bytes -> picture, decoded once -> uint8 views; colour.py what is done to their levels
    device_views.py  the same views of a whole batch in one pass on the training device
    text.py       which caption, and what is done to its words
    tokenizer.py  captions -> token ids, for whichever text tower the model has
    batches.py    sample numbers -> Batch: all of the above for one rank and step
    drops.py      what could not be used, counted by cause and bounded
    loader.py     train_batches: all of the above behind one iterator, in worker processes; stalls.py names who is late
    evalset.py    EvalSet: labelled or captioned test sets in CLIP_benchmark's layout

Three promises hold for the whole room, each by construction and each with a test:

- The sequence of global batches depends on the seed, the shards' sizes, and the batch size; never on the number of
  ranks or workers. Step ``n`` is found by arithmetic, so a resumed run reads on where the other one stopped.
- A sample's view and caption depend on (seed, epoch of its source, sample key) alone.
- A sample that cannot be used is replaced by another one, chosen deterministically, and reported: cause, shard, key.

docs/streaming.md shows what they mean in practice, and what happens when something fails. All up to ``mixture``, and ``drops``,
never import torch, so that the shard tools may use them.
"""
