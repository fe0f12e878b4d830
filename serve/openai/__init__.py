"""OpenAI's protocol for decoders' streams; imports doors, access, models, observe and engine."""
