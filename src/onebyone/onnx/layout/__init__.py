"""Layout of whole ONNX graphs: the second front end of the planner in `onebyone.layout`.

`decoder` reads ONNX operators as rules of the planner, `emitter` and `builder` write the planned graph, and `convert`
joins them. Values are stored in the axis order that needs the fewest layout operators, so that a run of operators on
tokens needs none between its convolutions.
"""
