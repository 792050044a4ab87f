"""Whether a network is as robust as it looks: adaptive attacks, red flags, and the trust report."""
