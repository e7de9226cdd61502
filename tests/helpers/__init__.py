"""What several test files share: cases, run folders, data, models, sites and a SuperLink."""
