"""The shard tools: from images with captions to WebDataset shards that training can trust. Never imports torch.

    unisphere shards build pairs.csv shards/cc3m        # or: python -m data_prep build ...
    unisphere shards build recipe:emoji data/emoji      # the bundled real data: no download, two seconds
    unisphere shards index /mnt/foreign/shards          # adopt tars that another tool wrote
    unisphere shards verify shards/cc3m                 # read everything back
    unisphere shards ls shards/cc3m

    rows.py       Row, the one thing that every source yields; what makes a row unusable before its image is read
    sources.py    jsonl / csv / tsv tables, image folders, recipes -> rows
    pictures.py   an image's bytes by path or URL, and whether they are a picture
    chunks.py     rows -> chunks -> one tar each: deterministic, resumable
    build.py      the run over all chunks, and the commit of the finished folder
    index.py      reads tars of any origin and writes their index and manifest
    verify.py     compares a folder with its manifest, and reads every sample
    manifest.py   manifest.jsonl, *.index.jsonl, sizes.json: what they hold and how they are written
    files.py      atomic writes, hashing
    recipes/      code that knows one dataset

Causes of rejection carry the same names as the loader's drops (``pipeline.data.drops``), so that one word means one
thing from the raw file to the training log.
"""
