"""Evaluation: embeddings of a whole set on every rank, then exact integer counts.

    embed.py       a set -> all embeddings on all ranks, the same bits for any number of ranks and any batch size
    scores.py      cosines without rounding error, and ranks among candidates
    zero_shot.py   classification by class-name prompts
    retrieval.py   Recall@K, both ways, several captions per image
    geometry.py    how the two modalities lie on the sphere
    evaluate.py    a list of sets -> a list of results with provenance
    target.py      a run, checkpoint, or export folder -> the model to evaluate
    sheet.py       one picture of a run: loss curves and what queries found
    run.py         the command ``unisphere eval``

No number depends on how many ranks shared the work.
"""
