"""What opens the doors: Ray, uvicorn, listeners, autoscaling; puts all the parts together."""
