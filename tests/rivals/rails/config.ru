# The article's design, for comparison: a thread and a database connection for every browser, which LISTENs on its board's
# channel; a list in Redis of the boards that are open; a thread that sends all of them a heartbeat, the only thing that ever
# notices a closed browser.
#
#   puma --threads 0:200 config.ru, with the database in DATABASE_URL and Redis in REDIS_URL
#
#   GET /events?topic=T        the stream
#   NOTIFY "T", '…'

require "logger"
require "rails"
require "action_controller/railtie"
require "active_record"
require "redis"

OPEN = "open_topics"
HEARTBEAT = "heartbeat"
HEARTBEAT_SECONDS = 20

class Stage < Rails::Application
  config.load_defaults 6.1
  config.eager_load = false
  config.logger = Logger.new($stderr)
  config.log_level = :fatal
  config.secret_key_base = "nothing here is signed"
  config.hosts.clear
  routes.append { get "/events" => "events#index" }
end

class EventsController < ActionController::Base
  include ActionController::Live

  def index
    topic = params.require(:topic)
    response.headers["Content-Type"] = "text/event-stream"
    response.headers["Cache-Control"] = "no-store"
    # Without it, Rack::ETag would wait for the end of the stream.
    response.headers["Last-Modified"] = Time.now.httpdate
    stream = SSE.new(response.stream, retry: 2000)
    REDIS.rpush(OPEN, topic)
    ActiveRecord::Base.connection_pool.with_connection do |connection|
      database = connection.raw_connection
      database.exec("LISTEN #{database.quote_ident(topic)}")
      stream.write("", event: HEARTBEAT)
      loop do
        database.wait_for_notify do |_channel, _pid, payload|
          payload.to_s.empty? ? stream.write("", event: HEARTBEAT) : stream.write(payload)
        end
      end
    ensure
      database&.exec("UNLISTEN *")
    end
  rescue ActionController::Live::ClientDisconnected
    # The browser is gone.
  ensure
    REDIS.lrem(OPEN, 1, topic)
    stream&.close
  end
end

REDIS = Redis.new(url: ENV.fetch("REDIS_URL"))
ActiveRecord::Base.establish_connection(url: ENV.fetch("DATABASE_URL"), pool: 1000)
Stage.initialize!

Thread.new do
  loop do
    sleep HEARTBEAT_SECONDS
    ActiveRecord::Base.connection_pool.with_connection do |connection|
      REDIS.lrange(OPEN, 0, -1).uniq.each { |topic| connection.execute("SELECT pg_notify(#{connection.quote(topic)}, '')") }
    end
  end
end

run Stage
