"""Many owners: what is learned together, how it is dealt to clients, and what each method shares."""
