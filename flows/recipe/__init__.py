STORE = "./runs"
"""Where everything is kept unless a recipe or a command says otherwise."""
