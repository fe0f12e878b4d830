"""The defence of a server that chooses models; imports models, engine and observe below it."""
