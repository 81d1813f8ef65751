"""Reading and comparing answers: pure functions of texts. They use no model.

`statements` finds where a completion states its answer. `numeric`, `text` and `equivalence` compare answers.
"""
