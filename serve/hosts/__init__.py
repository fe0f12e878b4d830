"""Opens the doors on Ray or uvicorn and puts the parts together; imports all but commands."""
