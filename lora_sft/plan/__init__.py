"""What a run will do, in numbers, before anything heavy is loaded."""
