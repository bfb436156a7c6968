"""Selection strategies: one file each.

A module holds ``Settings`` and ``score(source, target, settings, seed)``, which gives every source
class one score (higher is nearer, -inf is never kept). Keeping the best K is
`uotft.selection.ranking`. ``Settings.FILES``, if there, names the settings that are paths of files:
they count from the project's folder.
"""
