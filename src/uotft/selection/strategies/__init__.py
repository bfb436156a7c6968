"""Selection strategies: one file each.

A strategy's module has ``Settings`` and ``score(source, target, settings, seed)``. It returns one
score per source class: higher is better, and a class with -inf is never kept.
`uotft.selection.ranking` keeps the best K, or all others where ``Settings.IGNORES_K`` is true.
``Settings.FILES``, if present, names the settings that are paths; relative paths start at the
project's folder.
"""
