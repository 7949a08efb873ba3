"""Looking at many models: what each ties and wastes, through any executor, and resumable."""
