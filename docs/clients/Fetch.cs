// Calls the API for one organization; .NET 8 or newer.  dotnet run -- ORGANIZATION URL
using System;
using System.IO;
using System.Net;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text.Json;
using System.Threading.Tasks;

/// <summary>consentry on its Unix socket. One for the whole program: it keeps connections and uses them again.</summary>
public sealed class Worker
{
    private readonly HttpClient http;

    public Worker(string path)
    {
        var handler = new SocketsHttpHandler
        {
            ConnectCallback = async (context, cancelled) =>
            {
                var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                try
                {
                    await socket.ConnectAsync(new UnixDomainSocketEndPoint(path), cancelled);
                    return new NetworkStream(socket, ownsSocket: true);
                }
                catch
                {
                    socket.Dispose();
                    throw;
                }
            }
        };
        http = new HttpClient(handler) { BaseAddress = new Uri("http://localhost"), Timeout = TimeSpan.FromSeconds(60) };
    }

    public Task<Fetched> Token(string organization)
    {
        return Ask(new HttpRequestMessage(HttpMethod.Get, "/v1/organizations/" + organization + "/token"));
    }

    /// <summary>A newer token than the one that <c>rejected</c> names: many callers cause one exchange.</summary>
    public Task<Fetched> Refreshed(string organization, string rejected)
    {
        var request = new HttpRequestMessage(HttpMethod.Post, "/v1/organizations/" + organization + "/token/refresh");
        request.Headers.TryAddWithoutValidation("If-Match", rejected);
        return Ask(request);
    }

    private async Task<Fetched> Ask(HttpRequestMessage request)
    {
        using (var answer = await http.SendAsync(request))
        using (var body = JsonDocument.Parse(await answer.Content.ReadAsStringAsync()))
        {
            if (answer.StatusCode != HttpStatusCode.OK)
            {
                // The code is what a program decides by, such as consent_lost.
                throw new InvalidOperationException(body.RootElement.GetProperty("code").GetString());
            }
            return new Fetched(body.RootElement.GetProperty("access_token").GetString(), answer.Headers.ETag.ToString());
        }
    }
}

public sealed class Fetched
{
    public readonly string AccessToken;
    public readonly string Tag;

    public Fetched(string accessToken, string tag)
    {
        AccessToken = accessToken;
        Tag = tag;
    }
}

public static class Program
{
    private static readonly HttpClient Api = new HttpClient();

    public static async Task<int> Main(string[] arguments)
    {
        string organization = arguments[0], url = arguments[1];
        var path = Environment.GetEnvironmentVariable("CONSENTRY_SOCKET") ?? "/run/consentry/consentry.sock";
        var worker = new Worker(path);
        var fetched = await worker.Token(organization);
        var answer = await Call(url, fetched);
        if (answer.StatusCode == HttpStatusCode.Unauthorized)
        {
            fetched = await worker.Refreshed(organization, fetched.Tag);
            answer = await Call(url, fetched);
        }
        Console.Write(await answer.Content.ReadAsStringAsync());
        return answer.StatusCode == HttpStatusCode.OK ? 0 : 1;
    }

    private static Task<HttpResponseMessage> Call(string url, Fetched fetched)
    {
        var request = new HttpRequestMessage(HttpMethod.Get, url);
        request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", fetched.AccessToken);
        return Api.SendAsync(request);
    }
}
