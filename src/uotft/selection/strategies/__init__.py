"""The shelf of selection strategies: one file each.

A module holds ``Settings`` and ``score(source, target, settings, seed)``, which gives every source
class one score (higher is nearer, -inf is never kept). Keeping the best K is
`uotft.selection.ranking`.
"""
