"""Ray: started or connected, its nodes checked, trials packed onto them, jobs submitted."""
