"""What a process needs: other hosts, devices, durable files, progress, signals, compiled programs and memory."""
