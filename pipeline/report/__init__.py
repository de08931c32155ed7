"""What became of one or several runs, as a page for people: ``unisphere report RUN [RUN ...]``.

record      a run's folder as a value: settings, metrics, results
charts      SVG pictures of numbers, readable in light and dark, on paper, and by a screen reader; each carries its data as CSV
panels      tables, and pictures over names: rates with intervals, a matrix of counts
card        what was run: model, data, hardware, commit; where runs differ
results     rates over sets and runs, shifts within groups of sets, what differs beyond noise
training    curves of what was logged
sphere      geometry over time, and calibration
protocols   what is behind the rates: classes, confusions, shots, arithmetic, false captions; and what the page does not know
gallery     what the model sees: maps of the sphere with pictures on them, what captions and images find
show        which models and sets the gallery shows
summary     the report in short, as Markdown
main        the command
"""
