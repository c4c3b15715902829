"""The any-size rules, by kind of operator; `table` holds them all.

A rule is a function of the lifter, the call and the operator. It gives a lifted value (or a tuple of them), or raises
`Cannot` with the reason. Rules know no framework: they compute on integers, and emit operations on maps through the
lifter's `MapEmitter`.
"""
