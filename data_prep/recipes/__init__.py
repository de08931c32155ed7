"""Recipes: code that knows one dataset. Everything else in ``data_prep`` is the same for every dataset.

``emoji``         rows of the bundled emoji set, for ``unisphere shards build recipe:emoji OUT``
``emoji_bundle``  rebuilds that bundle from its npm packages; needs the optional extra ``bundle`` and is run by hand
"""
