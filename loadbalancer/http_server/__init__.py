"""The HTTP server below the application: uvicorn with limits on bytes, time and connections."""
