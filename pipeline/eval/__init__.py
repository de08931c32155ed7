"""Evaluation: embeddings of a whole set on every rank, then exact integer counts.

    sets.py        which sets are meant: folders, URLs, names below a root, collections
    target.py      a run, checkpoint, or export folder -> the model to evaluate
    embed.py       a set -> all embeddings on all ranks, the same bits for any number of ranks and any batch size
    scores.py      cosines without rounding error, in chunks; together.py: all ranks go on, or none
    prompts.py     what classes are called and what the text tower is told about them
    zero_shot.py   classification by class-name prompts             calibration.py   whether confidence means what it says
    retrieval.py   Recall@K, both ways, several captions per image  geometry.py      how the modalities lie on the sphere
    probes.py      k-NN, linear, few-shot (logistic.py)             intervals.py     bootstrap confidence intervals
    composition.py true against false captions                      arithmetic.py    image + word - word (simat.py: its data)
    captioning.py  what a captioning model writes, BLEU and CIDEr
    evaluate.py    a list of sets -> a list of results with provenance
    results.py     the results file                                 table.py         its table, and what shifts cost
    follow.py      every checkpoint as it appears                   sheet.py         one picture of a run
    run.py         the command ``unisphere eval``

No number depends on how many ranks shared the work.
"""
