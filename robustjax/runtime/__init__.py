"""Process-level services: hosts, device layout, durable files, progress, signals, the compilation cache and memory."""
