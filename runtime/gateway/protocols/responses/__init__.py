"""Pure: OpenAI's Responses API, stateless: requests become chat completions, and their answers responses.

Facts of the API were read in openai-python, `src/openai/types/responses`, and in OpenAI's pages "Responses" and
"Responses streaming".
"""
