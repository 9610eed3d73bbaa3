"""Why a clip got its label: where in it, in space and time, is what speaks for the class.

explanation = predictor.explain("clip.mp4")
print(*explanation.lines, sep="\n")
write_strip(explanation, "why.jpg")
"""
