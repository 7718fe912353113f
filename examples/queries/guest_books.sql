-- Two LLM calls over long texts that do not repeat: each home's row stands before the question, so that the second call
-- finds in the cache what the first one computed.
--   vllm-relational sql --file examples/queries/guest_books.sql --model PATH_OR_NAME
WITH books AS (
    SELECT name, description, string_agg(comments, ' ' ORDER BY review_id) AS guest_book
    FROM 'examples/airbnb_reviews.parquet'
    GROUP BY name, description
)
SELECT name,
       LLM('What should the host of {name} improve, according to {guest_book} and {description}?',
           name, guest_book, description) AS advice
FROM books
WHERE LLM_CLASSIFY('How do the guests feel in {guest_book}? {name} {description}', ['negative', 'positive'],
                   guest_book, name, description) = 'positive'
ORDER BY name;
