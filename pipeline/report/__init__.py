"""What became of one or several runs, as a page for people: ``unisphere report RUN [RUN ...]``.

record    a run's folder as a value: settings, metrics, results
charts    SVG pictures of numbers, readable in light and dark, on paper, and by a screen reader; each carries its data as CSV
gallery   what the model sees: a map of the sphere with pictures on it, and what captions find
page      the sections of the page, from records and pictures
main      the command
"""
