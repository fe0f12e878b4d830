"""`python -m serve.bench.gpu`: checks and times the CUDA path; imports no Ray, no pydantic."""
