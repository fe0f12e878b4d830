"""Clients of OpenAI's protocol, ours and others' servers; imports the client's root."""
