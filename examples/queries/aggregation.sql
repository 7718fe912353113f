-- Aggregation: a score a review, averaged over the reviews of each home.
--   vllm-relational sql --file examples/queries/aggregation.sql --model PATH_OR_NAME
SELECT name,
       count(*) AS reviews,
       avg(LLM_SCORE('How satisfied is the guest with {name}, described as {description}? {comments}', 1, 5,
                     name, description, comments)) AS satisfaction
FROM 'examples/airbnb_reviews.parquet'
GROUP BY name
ORDER BY satisfaction DESC, name;
