"""How good a map is: where it points, whether the model obeys it, and what it has over a map of no model.

A map is one `Float[Tensor, "height width"]` of signed scores, a mask one `Bool[Tensor, "height width"]`. Where a metric
takes both they lie in the same frame, whichever that is. Every metric is a pure function that states its definition,
range, direction and source; what it cannot score is refused with `InputError`, never scored as some number.
"""
