process() { emit "$MSG!"; }
