"""The shard tools: from images with captions to WebDataset shards that training can trust. Never imports torch.

    unisphere shards build pairs.csv shards/cc3m        # or: python -m data_prep build ...
    unisphere shards build s3://in/pairs.parquet s3://out/set --resize 256 --format jpeg --duplicates near --workers 16
    unisphere shards build recipe:emoji data/emoji      # the bundled real data: no download, two seconds
    unisphere shards index /mnt/foreign/shards          # adopt tars that another tool wrote
    unisphere shards verify shards/cc3m                 # read everything back
    unisphere shards preview shards/cc3m page.html      # and ls, cat, stats, repair, split, reshard, subset, mix
    unisphere shards recipe                             # known public data sets

    rows.py       Row, the one thing that every source yields; what makes a row unusable before its image is read
    sources.py    tables.py (csv, tsv, jsonl), parquet.py, image folders, tars.py (shards, img2dataset), recipes -> rows
    layout.py     the splits and evaluation sets of a folder of shards that is a source
    download.py   URL lists, handed over to img2dataset
    settings.py   what a build may be asked to do; filters.py: captions and images that are good enough
    pictures.py   an image's bytes by path or URL, and whether they are a picture; encode.py: resized, encoded again
    chunks.py     rows -> chunks, before any image is read; pack.py: a chunk -> its tar, deterministic, resumable
    build.py      the run over all chunks; duplicates.py, hashes.py: which go; commit.py: the finished folder
    retry.py      from a finished folder back to chunks, for the rows that failed; build_command.py: the command line
    places.py     where a build writes, local or remote; patience.py: one more try; spill.py: sets larger than memory
    index.py      reads tars of any origin and writes their index and manifest
    verify.py     compares shards with their manifest, and reads every sample; findings.py: every kind, with its exit code
    repair.py     a clean copy; split.py, reshard.py, subset.py, mix.py: other copies, all written by output.py
    stats.py  preview.py  listing.py      what is in shards: numbers, a page, names; tokens.py, dimensions.py help
    walk.py       every header of a hostile tar; grouping.py -> samples; lint.py -> judged; reader.py -> taken on trust
    inputs.py     finding and opening shards, local and remote; pool.py: one function over many of them
    manifest.py   manifest.jsonl, *.index.jsonl, sizes.json: what they hold and how they are written
    files.py      atomic writes, hashing
    recipes/      code that knows one dataset

Causes of rejection carry the same names as the loader's drops (``pipeline.data.drops``), so that one word means one
thing from the raw file to the training log.
"""
