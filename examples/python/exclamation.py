def process(input):
    return f"{input}!"
