"""What a trial computes: data, models, update rules, lanes, and the Ray Tune trainables around them."""
