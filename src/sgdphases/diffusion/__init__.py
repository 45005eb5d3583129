"""Generated datasets: a class-conditional diffusion model, its samples, and how good they are.

`definition` says what to generate, `process` has the mathematics, `unet` the network; `training`,
`sampling`, `assembly` and `quality` are the stages in turn. Only the first imports no JAX.
"""
