"""The training of stacked lanes, and the ordinary loop that each lane equals."""
