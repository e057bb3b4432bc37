"""What leaves the run: the adapter folder, the merged model, and the proof that they agree."""
