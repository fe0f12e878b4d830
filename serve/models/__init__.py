"""A served model: request, deadline, admission, live settings; imports observe and engine."""
