"""`python -m serve.bench.gpu`: checks and times the CUDA path; needs neither Ray nor pydantic."""
