<?php
// Calls the API for one organization, with PHP's curl extension.  php fetch.php ORGANIZATION URL
declare(strict_types=1);

/** consentry on its Unix socket. The handle is kept, and with it the connection. */
final class Worker
{
    private CurlHandle $curl;

    public function __construct(private string $socket)
    {
        $this->curl = curl_init();
    }

    /** @return array{string, string} the access token, and the tag that names it */
    public function token(string $organization): array
    {
        return $this->ask('GET', "/v1/organizations/$organization/token");
    }

    /** A newer token than the one that $rejected names: many callers cause one exchange. */
    public function refreshed(string $organization, string $rejected): array
    {
        return $this->ask('POST', "/v1/organizations/$organization/token/refresh", ["If-Match: $rejected"]);
    }

    private function ask(string $method, string $path, array $headers = []): array
    {
        $tag = '';
        curl_setopt_array($this->curl, [
            CURLOPT_UNIX_SOCKET_PATH => $this->socket,
            CURLOPT_URL => "http://localhost$path",
            CURLOPT_CUSTOMREQUEST => $method,
            CURLOPT_HTTPHEADER => $headers,
            CURLOPT_RETURNTRANSFER => true,
            CURLOPT_TIMEOUT => 60,
            CURLOPT_HEADERFUNCTION => function ($curl, string $line) use (&$tag): int {
                if (stripos($line, 'etag:') === 0) {
                    $tag = trim(substr($line, 5));
                }
                return strlen($line);
            },
        ]);
        $text = curl_exec($this->curl);
        if ($text === false) {
            throw new RuntimeException('the worker does not answer: ' . curl_error($this->curl));
        }
        $body = json_decode($text, true, flags: JSON_THROW_ON_ERROR);
        if (curl_getinfo($this->curl, CURLINFO_RESPONSE_CODE) !== 200) {
            // The code is what a program decides by, such as consent_lost.
            throw new RuntimeException("{$body['code']}: " . ($body['detail'] ?? $body['title']));
        }
        return [$body['access_token'], $tag];
    }
}

/** @return array{int, string} status and body */
function call(string $url, string $token): array
{
    $curl = curl_init($url);
    curl_setopt_array($curl, [
        CURLOPT_HTTPHEADER => ["Authorization: Bearer $token"],
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 30,
    ]);
    $body = curl_exec($curl);
    return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), (string) $body];
}

[, $organization, $url] = $argv;
$worker = new Worker(getenv('CONSENTRY_SOCKET') ?: '/run/consentry/consentry.sock');
[$token, $tag] = $worker->token($organization);
[$status, $body] = call($url, $token);
if ($status === 401) {
    [$token] = $worker->refreshed($organization, $tag);
    [$status, $body] = call($url, $token);
}
echo $body;
exit($status === 200 ? 0 : 1);
