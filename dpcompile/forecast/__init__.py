"""What a step would cost under another plan, on other hardware, at another batch size: graphs are rewritten, none is run."""
