"""The layout planner: stores every value of a program in the axis order that needs the fewest layout operators.

A front end decodes its program into values (`values`) and rules (`operators`, `rules`, `products`): what each operator
says about the order of its operands and its result. `planner.choose_orders` chooses an order for each value. The front
end then writes the program again: every rule writes its operator on the stored tensors (`stored_tensors`), with the
elementary operators that the front end supplies (`emitter.LayoutEmitter`).

Nothing here depends on a framework. Sizes are integers or symbolic expressions (`sizes`).
"""
