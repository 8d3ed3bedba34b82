# Completion of netagent in fish: what the program itself says of it, asked when it is needed first.
netagent completion fish | source
